# shellcheck shell=bash
# The steps of a long script: what will happen is told before it begins, each step as it begins, and at the end one line
# says how many tests there were and how long everything took.
#
#   plan NAME MINUTES TEXT   a step, and about how long it takes on two cores from nothing
#   tell_plan                all of them; with the times of the last run here, if there was one
#   step NAME                it begins
#   count_tests FILE         what test programs printed, for the line at the end
#   tell_end STATUS          the line at the end

planned=()
minutes=()
texts=()
begun=()
tests=""
last_times=${CARGO_TARGET_DIR:-target}/test-times

plan() {
  planned+=("$1")
  minutes+=("$2")
  texts+=("$3")
}

last_seconds() { awk -v name="$1" '$1 == name { print $2 }' "$last_times" 2>/dev/null || true; }

in_words() { if [ "$1" -lt 100 ]; then printf '%d s' "$1"; else printf '%d min' $((($1 + 30) / 60)); fi; }

tell_plan() {
  local i all=0 last
  for i in "${!planned[@]}"; do all=$((all + minutes[i])); done
  printf 'What will happen, in about %d minutes on two cores from nothing:\n' "$all"
  for i in "${!planned[@]}"; do
    last=$(last_seconds "${planned[i]}")
    printf '  %-14s about %2d min%s  %s\n' "${planned[i]}" "${minutes[i]}" "${last:+, last time $(in_words "$last")}" "${texts[i]}"
  done
}

step() {
  begun+=("$SECONDS $1")
  printf '\n== %d of %d: %s\n' ${#begun[@]} ${#planned[@]} "$1"
}

# Lines such as `test result: ok. 12 passed; 0 failed; 3 ignored; …`, coloured or not, one for each program.
count_tests() {
  tests=$(sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
    /^test result: / {
      programs += 1
      for (i = 2; i <= NF; i++) {
        if ($i ~ /^passed/) passed += $(i - 1)
        if ($i ~ /^failed/) failed += $(i - 1)
        if ($i ~ /^ignored/) ignored += $(i - 1)
      }
    }
    END { printf "%d passed, %d failed, %d ignored, in %d programs", passed, failed, ignored, programs }')
}

tell_end() {
  local now=$SECONDS i next seconds times="" outcome=ok
  for i in "${!begun[@]}"; do
    next=${begun[i + 1]:-$now}
    seconds=$((${next%% *} - ${begun[i]%% *}))
    times+="${begun[i]#* } $(in_words "$seconds"), "
    [ "$1" -ne 0 ] || printf '%s %d\n' "${begun[i]#* }" "$seconds"
  done >"$last_times.new"
  if [ "$1" -eq 0 ]; then
    mv "$last_times.new" "$last_times"
  else
    rm -f "$last_times.new"
    outcome="FAILED in ${begun[-1]#* }"
  fi
  printf '\n%s: %s; %sin all %s\n' "$outcome" "${tests:-no tests}" "$times" "$(in_words "$now")"
}
