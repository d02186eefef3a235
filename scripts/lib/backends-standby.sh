# shellcheck shell=bash
# Two servers that take each other's place, as the operators of a database let them: one takes writes, the other is its replica.
# The caller holds the lock of the server that is named.

need_pairs() {
  local name
  for name; do
    case " ${standbys[*]} " in
      *" ${name%_standby}_standby "*) ;;
      *) complain "$name" "never has a second server beside it" || exit 2 ;;
    esac
  done
}

do_follow() {
  local twin
  twin=$(twin_of "$1")
  [ "$(process_state "$twin")" = running ] || complain "$1" "cannot follow $twin, which does not run" || return 1
  "follow_${1%_standby}" "$1" "$twin"
  say "$1" "is a replica of $twin"
}

do_await() {
  "await_${1%_standby}" "$1" "$(twin_of "$1")"
  say "$1" "has each commit before $(twin_of "$1") answers it"
}

do_fence() {
  "fence_${1%_standby}" "$1" "$(twin_of "$1")"
  say "$1" "takes no writes any more"
}

do_promote() {
  [ "$(process_state "$1")" = running ] || complain "$1" "cannot be promoted: it does not run" || return 1
  "promote_${1%_standby}" "$1"
  say "$1" "takes writes"
}

# Asks until the answer is the one expected, or some seconds have passed: until_it_says EXPECTED COMMAND…
until_it_says() {
  local expected=$1 limit=$((SECONDS + 30))
  shift
  until [ "$("$@" 2>/dev/null)" = "$expected" ]; do
    [ $SECONDS -lt $limit ] || return 1
    sleep 0.1
  done
}

# --- PostgreSQL: streaming

ask_postgres() { PGCONNECT_TIMEOUT=3 timeout 40 "$(postgres_bin)/psql" -XAtq "$(own_url "$1")" -c "$2"; }

# All that the one beside it has, and where to get what comes.
copy_postgres() {
  local name=$1 home=$2 twin
  twin=$(twin_of "$name")
  rm -rf "$home/data" "$home/data.new"
  as_user postgres env -C "$home" "$(postgres_bin)/pg_basebackup" --pgdata="$home/data.new" --write-recovery-conf \
    --checkpoint=fast --wal-method=stream --no-sync \
    --dbname="host=127.0.0.1 port=$(port_of "$twin") user=cap password=cap application_name=$name"
  mv "$home/data.new" "$home/data"
}

is_streaming() { ask_postgres "$2" "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = '$1'"; }

# One that was a primary has a history of its own: it begins again.
follow_postgres() {
  local name=$1 twin=$2 home
  [ "$(ask_postgres "$twin" 'SELECT pg_is_in_recovery()')" = f ] || complain "$name" "cannot follow $twin, which takes no writes" || return 1
  if [ "$(process_state "$name")" != running ] || [ "$(ask_postgres "$name" 'SELECT pg_is_in_recovery()')" != t ]; then
    do_stop "$name"
    home=$(make_home "$name")
    if ! copy_postgres "$name" "$home" >>"$(log_file "$name")" 2>&1; then
      complain_with_log "$name" "$twin could not be copied" || return 1
    fi
    start "$name"
    [ ! -e "$(clock_file "$twin")" ] || ! has_clock "$name" || set_clock "$name" "$(<"$(clock_file "$twin")")"
  fi
  until_it_says 1 is_streaming "$name" "$twin" || complain_with_log "$name" "gets nothing from $twin"
}

await_postgres() {
  ask_postgres "$2" "ALTER SYSTEM SET synchronous_standby_names = '\"$1\"'"
  ask_postgres "$2" 'SELECT pg_reload_conf()' >/dev/null
  until_it_says sync ask_postgres "$2" "SELECT sync_state FROM pg_stat_replication WHERE application_name = '$1'" ||
    complain "$1" "$2 does not wait for it"
}

# Before it ends it gives its replica all that it has.
fence_postgres() { do_stop "$1"; }

promote_postgres() {
  if [ "$(ask_postgres "$1" 'SELECT pg_is_in_recovery()')" = t ]; then
    [ "$(ask_postgres "$1" 'SELECT pg_promote(true, 30)')" = t ] || complain_with_log "$1" "was not promoted" || return 1
  fi
  ask_postgres "$1" 'ALTER SYSTEM RESET synchronous_standby_names'
  ask_postgres "$1" 'SELECT pg_reload_conf()' >/dev/null
}

# --- MariaDB: row by row, by global transaction ids

ask_mariadb() {
  local name=$1
  shift
  mariadb_client "$name" --connect-timeout=3 -N -B "$@"
}

mariadb_replica_state() {
  local name=$1 twin=$2
  mariadb_client "$name" --connect-timeout=3 --vertical -e 'SHOW SLAVE STATUS' | awk -v port="$(port_of "$twin")" '
    $1 == "Master_Port:" && $2 == port || ($1 == "Slave_IO_Running:" || $1 == "Slave_SQL_Running:") && $2 == "Yes" { good++ }
    END { print (good == 3 ? "streams" : "") }'
}

follow_mariadb() {
  local name=$1 twin=$2 home
  [ "$(ask_mariadb "$twin" -e 'SELECT @@log_bin, @@read_only')" = $'1\t0' ] ||
    complain "$name" "cannot follow $twin, which takes no writes or was started without CAP_BACKENDS_STANDBYS=mariadb" || return 1
  [ "$(process_state "$name")" = running ] || start "$name"
  home=$(home_of "$name")
  if [ "$(mariadb_replica_state "$name" "$twin")" != streams ]; then
    [ -e "$home/joined" ] || copy_mariadb "$name" "$twin" || complain "$name" "$twin could not be copied" || return 1
    follow_mariadb_from_here "$name" "$twin"
    touch "$home/joined" "$(home_of "$twin")/joined"
  fi
  touch "$home/standby"
  ask_mariadb "$name" -e 'SET GLOBAL read_only = 1'
  until_it_says streams mariadb_replica_state "$name" "$twin" || {
    mariadb_client "$name" --vertical -e 'SHOW SLAVE STATUS' >&2
    complain "$name" "gets nothing from $twin"
  }
}

# The dump says where it ends; what this one has written down itself so far is not told to anybody.
copy_mariadb() {
  local name=$1 twin=$2
  mariadb-dump --no-defaults --protocol=tcp --host=127.0.0.1 --port="$(port_of "$twin")" --user=cap --password=cap \
    --all-databases --single-transaction --master-data=1 --gtid --flush-privileges |
    ask_mariadb "$name" --init-command='SET sql_log_bin = 0'
  ask_mariadb "$name" -e 'RESET MASTER'
  ask_mariadb "$name" -e "SET GLOBAL gtid_binlog_state = '$(ask_mariadb "$name" -e 'SELECT @@gtid_slave_pos')'"
}

# What it has written as a primary counts as received.
follow_mariadb_from_here() {
  ask_mariadb "$1" -e "STOP SLAVE; CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = $(port_of "$2"), MASTER_USER = 'cap',
    MASTER_PASSWORD = 'cap', MASTER_CONNECT_RETRY = 1, MASTER_USE_GTID = slave_pos$(demotion "$1"); START SLAVE"
}

demotion() { if [ -e "$(home_of "$1")/joined" ]; then echo ', MASTER_DEMOTE_TO_SLAVE = 1'; fi; }

# The one beside it has what it has when it is fenced.
await_mariadb() { :; }

# Connections stay open, and their writes are refused: but not those of users who may write all the same.
fence_mariadb() {
  touch "$(home_of "$1")/standby"
  ask_mariadb "$1" -e 'SET GLOBAL read_only = 1'
  [ "$(ask_mariadb "$2" -e "SELECT MASTER_GTID_WAIT('$(ask_mariadb "$1" -e 'SELECT @@gtid_binlog_pos')', 30)")" = 0 ] ||
    complain "$1" "has more than $2"
}

promote_mariadb() {
  ask_mariadb "$1" -e 'STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = 0'
  rm -f "$(home_of "$1")/standby"
}
