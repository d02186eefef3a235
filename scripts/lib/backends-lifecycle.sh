# shellcheck shell=bash
# What may be done to a server. The caller holds its lock.

# The folder the server works in, made and owned as it needs. Its user must be able to reach it, which it cannot below,
# say, /root: then a folder elsewhere takes its place and is remembered.
make_home() {
  local name=$1 home user
  user=$("user_$name")
  home=$(home_of "$name")
  mkdir -p "$home"
  if [ -n "$user" ] && as_root; then
    if ! as_user "$user" test -x "$home"; then
      home=$(mktemp -d "/var/tmp/cap-backends-$name-XXXXXX")
      printf '%s' "$home" >"$(home_file "$name")"
    fi
  fi
  ! has_disk "$name" || give_disk "$name" "$home"
  if [ -n "$user" ] && as_root; then chown "$user": "$home"; fi
  printf '%s' "$home"
}

give_disk() {
  ! mountpoint -q "$2" || return 0
  as_root || complain "$1" "only root can give it a disk of its own (CAP_BACKENDS_DISKS)" || return 1
  [ -z "$(ls -A "$2")" ] || complain "$1" "has data that is on no disk of its own: scripts/backends down --purge $1" || return 1
  mount -t tmpfs -o size=3g,mode=0755 cap-backends "$2"
}

# Why a start came to nothing, for the person who reads it.
complain_with_log() {
  say "$1" "$2; the end of $(log_file "$1"):" >&2
  tail -n 25 "$(log_file "$1")" | sed 's/^/    /' >&2
  return 1
}

answers() { "answers_$1" "$(own_url "$1")" >/dev/null 2>&1; }

wait_for_answer() {
  local name=$1 begin=$SECONDS next=15
  until answers "$name"; do
    [ -n "$(leader "$name")" ] || complain_with_log "$name" "ended while starting" || return 1
    if [ $((SECONDS - begin)) -ge "$answer_timeout" ]; then
      complain_with_log "$name" "does not answer after $answer_timeout s" || return 1
    fi
    if [ $((SECONDS - begin)) -ge $next ]; then
      say "$name" "starting, $next s so far"
      next=$((next + 15))
    fi
    sleep 0.1
  done
}

# The port asked for, or else the one it had before, remembered once it is known to be free.
choose_port() {
  local name=$1 chosen port
  chosen=$(wanted_port "$name")
  [ -n "$chosen" ] || chosen=$(port_of "$name")
  for port in $("ports_$name" "$chosen"); do
    if port_is_taken "$port"; then
      complain "$name" "port $port is taken by another process; choose another with CAP_BACKENDS_${name^^}_PORT" || return 1
    fi
  done
  printf '%s' "$chosen" >"$(port_file "$name")"
}

start() {
  local name=$1 home port begin
  begin=$(now_ms)
  kill_all "$name" # what a first process left behind that somebody else ended
  choose_port "$name"
  port=$(port_of "$name")
  home=$(make_home "$name")
  if ! ("prepare_$name" "$home" "$port") >>"$(log_file "$name")" 2>&1; then
    complain_with_log "$name" "its data directory could not be made" || return 1
  fi
  "start_$name" "$home" "$port"
  remember_leader "$name" $!
  wait_for_answer "$name"
  say "$name" "up on 127.0.0.1:$port ($(since "$begin"))"
}

bring_up() {
  local name=$1
  case $(process_state "$name") in
    down) start "$name" ;;
    running)
      wait_for_answer "$name"
      say "$name" "already up on 127.0.0.1:$(port_of "$name")"
      ;;
    frozen)
      do_thaw "$name"
      wait_for_answer "$name"
      ;;
  esac
}

# A replica, made anew if it has never been one.
bring_up_standby() {
  case $(process_state "$1") in
    down) do_follow "$1" ;;
    *) bring_up "$1" ;;
  esac
}

bring_back() {
  [ "$(process_state "$1")" = down ] || do_stop "$1"
  start "$1"
}

# Takes effect with each process's next look at the clock; a file in the making must not be read.
set_clock() {
  local name=$1 seconds=$2 file
  file=$(clock_file "$name")
  [[ $seconds =~ ^[+-]?[0-9]+$ ]] || complain "$name" "'$seconds' is no number of seconds" || return 2
  [ -e "$file" ] && has_clock "$name" || complain "$name" "was started without CAP_BACKENDS_CLOCKS=$name" || return 1
  case $seconds in
    [+-]*) ;;
    *) seconds=+$seconds ;;
  esac
  printf '%s\n' "$seconds" >"$file.new"
  chmod a+r "$file.new"
  mv "$file.new" "$file"
  say "$name" "its clock is wrong by $seconds s"
}

do_stop() {
  local name=$1 pid begin limit
  pid=$(leader "$name")
  begin=$(now_ms)
  limit=$((SECONDS + 60))
  if [ -n "$pid" ]; then
    signal_all CONT < <(server_pids "$name")
    kill -s "$(stop_signal "$name")" "$pid" 2>/dev/null || true
    while [ -n "$(leader "$name")" ] && [ $SECONDS -lt $limit ]; do sleep 0.1; done
    [ -z "$(leader "$name")" ] || say "$name" "does not stop within 60 s, killing it" >&2
  fi
  kill_all "$name"
  if [ -n "$pid" ]; then say "$name" "stopped ($(since "$begin"))"; else say "$name" "is not running"; fi
}

# Quiet about servers that were not running, unlike `stop`, which somebody asked for by name.
bring_down() {
  if [ -n "$(server_pids "$1")" ]; then do_stop "$1"; fi
}

do_kill() {
  if [ -z "$(server_pids "$1")" ]; then
    say "$1" "is not running"
    return
  fi
  kill_all "$1"
  say "$1" "killed"
}

do_freeze() {
  [ "$(process_state "$1")" != down ] || complain "$1" "cannot be frozen: it is not running"
  freeze_all "$1"
  say "$1" "frozen"
}

do_thaw() {
  [ "$(process_state "$1")" != down ] || complain "$1" "cannot be thawed: it is not running"
  signal_all CONT < <(server_pids "$1")
  say "$1" "thawed"
}

do_fill() {
  mountpoint -q "$(home_of "$1")" || complain "$1" "was started without CAP_BACKENDS_DISKS=$1" || return 1
  # It ends when there is no more room.
  dd if=/dev/zero of="$(ballast_file "$1")" bs=1M status=none 2>/dev/null || true
  say "$1" "its disk is full"
}

do_free() {
  rm -f "$(ballast_file "$1")"
  say "$1" "its disk has room"
}

purge() {
  local name=$1
  ! mountpoint -q "$(home_of "$name")" || umount "$(home_of "$name")"
  rm -rf "$(home_of "$name")" "$dir/data/$name"
  rm -f "$(home_file "$name")" "$(port_file "$name")" "$(pid_file "$name")" "$(log_file "$name")"
  say "$name" "no data left"
}

print_status() {
  local name=$1 state
  if is_theirs "$name"; then
    say "$name" "not ours: $(url_variable "$name") names another server"
    return
  fi
  state=$(process_state "$name")
  if [ "$state" = running ]; then
    if answers "$name"; then state=up; else state="running, but does not answer"; fi
  fi
  case $state in
    down) say "$name" down ;;
    *) say "$name" "$state, 127.0.0.1:$(port_of "$name"), process $(leader "$name")" ;;
  esac
}
