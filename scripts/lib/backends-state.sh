# shellcheck shell=bash
# What `scripts/backends` knows of each server: its folder, port, address, and whether it is ours at all.
#
#   state/NAME.pid    the first process: id, and start time, so that a reused id is never mistaken for it
#   state/NAME.port   the port it was first started on, kept until `down --purge`
#   state/NAME.home   its folder, when that cannot be below here (its user could not reach it)
#   data/NAME, logs/NAME.log, software/

names=(postgres pgbouncer mariadb rabbitmq kafka mongo)
# Second servers, each beside the one that it is called after. They are replicas of it, until they take its place.
standbys=(postgres_standby mariadb_standby)

dir=${CAP_BACKENDS_DIR:-$(dirname "$(dirname "$script")")/target/backends}
mkdir -p "$dir/state" "$dir/data" "$dir/logs" "$dir/software"
dir=$(cd "$dir" && pwd)
answer_timeout=${CAP_BACKENDS_TIMEOUT:-90}

say() { printf '%-9s %s\n' "$1" "$2"; }

complain() {
  say "$1" "$2" >&2
  return 1
}

now_ms() { date +%s%3N; }

since() {
  local ms=$(($(now_ms) - $1))
  printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

log_file() { printf '%s/logs/%s.log' "$dir" "$1"; }
pid_file() { printf '%s/state/%s.pid' "$dir" "$1"; }
port_file() { printf '%s/state/%s.port' "$dir" "$1"; }
home_file() { printf '%s/state/%s.home' "$dir" "$1"; }

# Whether one list, with commas or blanks, names this server or the one that it stands beside.
is_named() {
  local named=" $1 "
  [[ ${named//,/ } == *" ${2%_standby} "* ]]
}

# Whether its clock can be set: what CAP_BACKENDS_CLOCKS names is started so.
has_clock() { is_named "${CAP_BACKENDS_CLOCKS:-}" "$1"; }

# Whether it has a disk of its own: what CAP_BACKENDS_DISKS names is started so.
has_disk() { is_named "${CAP_BACKENDS_DISKS:-}" "$1"; }

# Whether it has a second server beside it: what CAP_BACKENDS_STANDBYS names is started so.
has_standby() { is_named "${CAP_BACKENDS_STANDBYS:-}" "$1" && [[ " ${standbys[*]} " == *" ${1%_standby}_standby "* ]]; }

# The other one of the two.
twin_of() {
  case $1 in
    *_standby) echo "${1%_standby}" ;;
    *) echo "$1_standby" ;;
  esac
}

# What takes the room on its disk when that is full.
ballast_file() { printf '%s/ballast' "$(home_of "$1")"; }

clock_file() { printf '%s/clock' "$(home_of "$1")"; }

# The folder a server works in.
home_of() {
  if [ -s "$(home_file "$1")" ]; then
    cat "$(home_file "$1")"
  else
    printf '%s/data/%s' "$dir" "$1"
  fi
}

# All below the range that systems hand out for outgoing connections. Some servers also take the port or two above theirs.
default_port() {
  case $1 in
    postgres) echo 28432 ;;
    postgres_standby) echo 28436 ;;
    pgbouncer) echo 28434 ;;
    mariadb) echo 28306 ;;
    mariadb_standby) echo 28308 ;;
    rabbitmq) echo 28672 ;;
    kafka) echo 28092 ;;
    mongo) echo 28017 ;;
  esac
}

wanted_port() {
  local variable=CAP_BACKENDS_${1^^}_PORT
  printf '%s' "${!variable:-}"
}

port_of() {
  if [ -s "$(port_file "$1")" ]; then
    cat "$(port_file "$1")"
  elif [ -n "$(wanted_port "$1")" ]; then
    wanted_port "$1"
  else
    default_port "$1"
  fi
}

url_variable() {
  case $1 in
    mariadb) echo CAP_TEST_MYSQL_URL ;;
    mariadb_standby) echo CAP_TEST_MYSQL_STANDBY_URL ;;
    *) echo "CAP_TEST_${1^^}_URL" ;;
  esac
}

own_url() {
  local port
  port=$(port_of "$1")
  case $1 in
    postgres | postgres_standby | pgbouncer) echo "postgres://cap:cap@127.0.0.1:$port/cap" ;;
    mariadb | mariadb_standby) echo "mysql://cap:cap@127.0.0.1:$port/cap" ;;
    rabbitmq) echo "amqp://guest:guest@127.0.0.1:$port/%2f" ;;
    kafka) echo "127.0.0.1:$port" ;;
    mongo) echo "mongodb://127.0.0.1:$port/?replicaSet=secantus" ;;
  esac
}

# Beside PgBouncer's own address, which is in transaction mode: that in session mode.
own_session_url() { echo "postgres://cap:cap@127.0.0.1:$(($(port_of pgbouncer) + 1))/cap"; }

management_port() { echo $(($(port_of rabbitmq) + 3)); }

# Beside RabbitMQ's own address: its management API's.
own_management_url() { echo "http://guest:guest@127.0.0.1:$(management_port)"; }

# Beside Kafka's own address: its other listeners, for tests.
print_kafka_listeners() {
  local port
  port=$(port_of kafka)
  printf 'export CAP_TEST_KAFKA_SASL_URL=%q\n' "127.0.0.1:$((port + 2))"
  printf 'export CAP_TEST_KAFKA_TLS_URL=%q\n' "127.0.0.1:$((port + 3))"
  printf 'export CAP_TEST_KAFKA_PROXIED_URL=%q\n' "127.0.0.1:$((port + 4))"
  printf 'export CAP_TEST_KAFKA_CA_FILE=%q\n' "$(home_of kafka)/ca.pem"
  printf 'export CAP_TEST_KAFKA_MUTUAL_TLS_URL=%q\n' "127.0.0.1:$((port + 6))"
  printf 'export CAP_TEST_KAFKA_CERTIFICATE_FILE=%q\n' "$(home_of kafka)/client.pem"
  printf 'export CAP_TEST_KAFKA_KEY_FILE=%q\n' "$(home_of kafka)/client-key.pem"
}

their_url() {
  local variable
  variable=$(url_variable "$1")
  printf '%s' "${!variable:-}"
}

# After `eval "$(scripts/backends env)"` the variables name our own servers: only another address is somebody else's.
is_theirs() {
  local theirs
  theirs=$(their_url "$1")
  [ -n "$theirs" ] && [ "$theirs" != "$(own_url "$1")" ]
}

# One command at a time for each server; others, for other servers, go on. Ends with this process.
take_lock() {
  exec 9>"$dir/state/$1.lock"
  flock --nonblock 9 && return
  say "$1" "waiting for another run of this script"
  flock --timeout 600 9 || complain "$1" "another run of this script still holds $dir/state/$1.lock"
}
