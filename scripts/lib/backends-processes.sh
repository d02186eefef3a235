# shellcheck shell=bash
# Finding, starting and ending all processes of a server, and only those.
#
# A server's processes are those that carry its mark in the environment they were started with, those of the first
# process's session, and the descendants of both. (PostgreSQL's children lose the mark and open sessions of their own;
# epmd is no descendant; both are found all the same.)

as_root() { [ "$(id -u)" -eq 0 ]; }

# Runs a command as a server's own user if we are root, which some servers refuse to run as.
as_user() {
  local user=$1
  shift
  if as_root; then
    setpriv --reuid="$user" --regid="$user" --init-groups "$@"
  else
    "$@"
  fi
}

mark() { printf 'CAP_BACKENDS_SERVER=%s/%s' "$dir" "$1"; }

# State and start time of a process, as "S 12345"; nothing if there is none. The name in brackets may contain anything.
process_facts() {
  local stat
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  [ -n "$stat" ] || return 0
  # shellcheck disable=SC2086 # split into fields
  set -- ${stat##*) }
  printf '%s %s' "$1" "${20}"
}

# The first process, if it is alive and is the one that was started.
leader() {
  local pid started state now
  [ -s "$(pid_file "$1")" ] || return 0
  { read -r pid started <"$(pid_file "$1")"; } 2>/dev/null || return 0
  read -r state now <<<"$(process_facts "$pid")"
  if [ "$now" = "$started" ] && [ "$state" != Z ] && [ "$state" != X ]; then
    printf '%s' "$pid"
  fi
}

process_state() {
  local pid state _
  pid=$(leader "$1")
  [ -n "$pid" ] || { echo down; return; }
  read -r state _ <<<"$(process_facts "$pid")"
  if [ "$state" = T ]; then echo frozen; else echo running; fi
}

# Every living process of a server, parents before children.
server_pids() {
  local first marked
  first=$(leader "$1")
  marked=$(grep -lszxF "$(mark "$1")" /proc/[0-9]*/environ 2>/dev/null | tr -dc '0-9\n' | tr '\n' ' ') || true
  { cat /proc/[0-9]*/stat 2>/dev/null || true; } | awk -v first="$first" -v marked="$marked" '
    BEGIN { n = split(marked, m, " "); for (i = 1; i <= n; i++) root[m[i]] = 1; if (first != "") root[first] = 1 }
    {
      pid = $1
      sub(/^.*\) /, "")
      if ($1 == "Z" || $1 == "X") next
      parent[pid] = $2
      if (first != "" && $4 == first) root[pid] = 1
    }
    END {
      for (pid in root) if (pid in parent) { found[pid] = 1; print pid }
      do {
        grown = 0
        for (pid in parent) if (!(pid in found) && (parent[pid] in found)) { found[pid] = 1; grown = 1; print pid }
      } while (grown)
    }'
}

signal_all() {
  local signal=$1 pids
  shift
  mapfile -t pids
  [ ${#pids[@]} -eq 0 ] || kill -s "$signal" "${pids[@]}" 2>/dev/null || true
}

# Stops all processes, again and again until no new one appears: a parent may have forked before its turn came.
freeze_all() {
  local before="" now
  now=$(server_pids "$1")
  while [ "$now" != "$before" ]; do
    signal_all STOP <<<"$now"
    before=$now
    now=$(server_pids "$1")
  done
}

# All at once, like a power cut: nobody sees a neighbour die and gets to clean up.
kill_all() {
  local deadline=$((SECONDS + 30)) left
  freeze_all "$1"
  left=$(server_pids "$1")
  while [ -n "$left" ]; do
    signal_all KILL <<<"$left"
    [ $SECONDS -lt $deadline ] || complain "$1" "processes that cannot be killed: ${left//$'\n'/ }" || return 1
    sleep 0.02
    left=$(server_pids "$1")
  done
  rm -f "$(pid_file "$1")"
}

# Starts a server's first process: launch NAME HOME [VARIABLE=VALUE…] COMMAND…
# A session of its own, nothing of the caller's environment, none of its open files, the log as its output.
launch() {
  local name=$1 home=$2
  shift 2
  printf -- '--- %s: starting\n' "$(date '+%F %T')" >>"$(log_file "$name")"
  (
    cd "$home"
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      if [ "$fd" -gt 2 ] && [ "$fd" -ne 255 ]; then eval "exec $fd>&-"; fi
    done
    exec env -i PATH="$PATH" HOME="$home" LANG=C.UTF-8 "$(mark "$name")" setsid env "$@"
  ) </dev/null >>"$(log_file "$name")" 2>&1 &
}

# Remembers the process that `launch` started last as the server's first one.
remember_leader() {
  local state started
  read -r state started <<<"$(process_facts "$2")"
  [ -n "$state" ] || return 0
  printf '%s %s\n' "$2" "$started" >"$(pid_file "$1")"
}
