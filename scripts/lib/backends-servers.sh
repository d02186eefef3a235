# shellcheck shell=bash
# The servers. Each has the same functions:
#
#   user_NAME      the user it runs as when we are root; empty: root
#   ports_NAME     all ports it listens on, given its port
#   prepare_NAME   makes its data directory; nothing if there is one
#   start_NAME     launches it
#   answers_NAME   asks it something over the network
#   client_NAME    runs its own client
#
# Durable as in production, but small.

# --- PostgreSQL: a superuser cap/cap with a database cap, TCP only

user_postgres() { echo postgres; }
ports_postgres() { echo "$1"; }

prepare_postgres() {
  local home=$1 bin
  [ ! -d "$home/data" ] || return 0
  bin=$(postgres_bin)
  rm -rf "$home/data.new"
  echo cap >"$home/password"
  chmod a+r "$home/password"
  as_user postgres env -C "$home" LC_ALL=C.UTF-8 "$bin/initdb" --pgdata="$home/data.new" --username=cap \
    --pwfile="$home/password" --auth=scram-sha-256 --encoding=UTF8 --no-locale --no-instructions
  echo 'CREATE DATABASE cap' |
    as_user postgres env -C "$home" "$bin/postgres" --single -D "$home/data.new" postgres
  mv "$home/data.new" "$home/data"
}

# A killed postmaster that the system has not reaped yet looks alive to the next one, which then refuses to start.
forget_dead_postmaster() {
  local file=$1/postmaster.pid pid state _
  [ -s "$file" ] || return 0
  read -r pid <"$file"
  for _ in {1..50}; do
    read -r state _ <<<"$(process_facts "$pid")"
    [ "$state" = Z ] || return 0
    sleep 0.1
  done
  rm -f "$file"
}

start_postgres() { start_a_postgres postgres "$@"; }

# Whoever it was to wait for at each commit may not be there any more. A standby that has lost its primary looks for it often.
start_a_postgres() {
  local name=$1 home=$2 port=$3 switch=() clock
  mapfile -t clock < <(clock_environment "$name" "$home")
  forget_dead_postmaster "$home/data"
  sed -i '/^synchronous_standby_names/d' "$home/data/postgresql.auto.conf"
  ! as_root || chown postgres: "$home/data/postgresql.auto.conf"
  ! as_root || switch=(setpriv --reuid=postgres --regid=postgres --init-groups)
  launch "$name" "$home" "${switch[@]}" "${clock[@]}" "$(postgres_bin)/postgres" -D "$home/data" \
    -c listen_addresses=127.0.0.1 -c port="$port" -c unix_socket_directories= \
    -c max_connections=300 -c shared_buffers=128MB -c wal_retrieve_retry_interval=200ms
}

answers_postgres() { PGCONNECT_TIMEOUT=3 timeout 5 "$(postgres_bin)/psql" -XAtq "$1" -c 'SELECT 1'; }

client_postgres() { "$(postgres_bin)/psql" "$(own_url postgres)" "$@"; }

# --- The one beside it: a copy of it

user_postgres_standby() { user_postgres; }
ports_postgres_standby() { ports_postgres "$@"; }
prepare_postgres_standby() { [ -d "$1/data" ] || copy_postgres postgres_standby "$1"; }
start_postgres_standby() { start_a_postgres postgres_standby "$@"; }
answers_postgres_standby() { answers_postgres "$@"; }
client_postgres_standby() { "$(postgres_bin)/psql" "$(own_url postgres_standby)" "$@"; }

# --- PgBouncer before our own PostgreSQL, whoever comes and for any database of it: in transaction mode, and in session mode
# on the port above

user_pgbouncer() { echo postgres; }
ports_pgbouncer() { echo "$1 $(($1 + 1))"; }

prepare_pgbouncer() {
  local home=$1 port=$2 mode
  for mode in transaction session; do
    cat >"$home/$mode.ini" <<INI
[databases]
* = host=127.0.0.1 port=$(port_of postgres) user=cap password=cap

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $port
unix_socket_dir =
auth_type = any
pool_mode = $mode
default_pool_size = 20
max_client_conn = 300
ignore_startup_parameters = extra_float_digits
INI
    port=$((port + 1))
  done
}

# It refuses to run as root, too.
start_pgbouncer() {
  local home=$1 switch=() mode
  ! as_root || switch=(setpriv --reuid=postgres --regid=postgres --init-groups)
  for mode in session transaction; do
    launch pgbouncer "$home" "${switch[@]}" "$(pgbouncer_program)" "$home/$mode.ini"
  done
}

# Its own console, so that it is up whether the server behind it is or not.
pgbouncer_console() { PGCONNECT_TIMEOUT=3 timeout 5 "$(postgres_bin)/psql" -XAtq "${1%/cap}/pgbouncer" "${@:2}"; }

answers_pgbouncer() {
  local url
  for url in "$1" "$(own_session_url)"; do
    pgbouncer_console "$url" -c 'SHOW VERSION' || return 1
  done
}

client_pgbouncer() { pgbouncer_console "$(own_url pgbouncer)" "$@"; }

# --- MariaDB: a user cap/cap with all rights and a database cap

user_mariadb() { echo mysql; }
ports_mariadb() { echo "$1"; }

prepare_mariadb() {
  local home=$1 user=()
  # Read at each start, before the first connection is let in; each server does it by itself, so that no replica is told.
  cat >"$home/init.sql" <<'SQL'
SET sql_log_bin = 0;
CREATE DATABASE IF NOT EXISTS cap;
CREATE USER IF NOT EXISTS cap@'%' IDENTIFIED BY 'cap';
GRANT ALL PRIVILEGES ON *.* TO cap@'%' WITH GRANT OPTION;
SQL
  [ ! -d "$home/data" ] || return 0
  rm -rf "$home/data.new"
  ! as_root || user=(--user=mysql)
  mariadb-install-db --no-defaults --datadir="$home/data.new" "${user[@]}" \
    --auth-root-authentication-method=normal --skip-test-db
  mv "$home/data.new" "$home/data"
}

# The socket's path is relative to the data directory: an absolute one may be too long.
start_mariadb() { start_a_mariadb mariadb "$@"; }

start_a_mariadb() {
  local name=$1 home=$2 port=$3 user=() options=() clock replication
  mapfile -t clock < <(clock_environment "$name" "$home")
  mapfile -t replication < <(mariadb_replication "$name" "$home")
  ! as_root || user=(--user=mysql)
  read -ra options <<<"${CAP_BACKENDS_MARIADB_OPTIONS:-}"
  launch "$name" "$home" "${clock[@]}" "$(mariadb_program)" --no-defaults "${user[@]}" --datadir="$home/data" \
    --bind-address=127.0.0.1 --port="$port" --socket=server.sock --pid-file=server.pid --init-file="$home/init.sql" \
    --skip-name-resolve --character-set-server=utf8mb4 --max-connections=300 "${replication[@]}" "${options[@]}"
}

# Only where there are two: what is written down for a replica is written twice.
mariadb_replication() {
  local name=$1 home=$2
  has_standby "$name" || return 0
  if [ "$name" = mariadb ]; then echo --server-id=1; else echo --server-id=2; fi
  printf '%s\n' --log-bin=binlog --binlog-format=row --log-slave-updates --slave-net-timeout=10
  [ ! -e "$home/standby" ] || echo --read-only
}

mariadb_client() {
  local name=$1
  shift
  mariadb --no-defaults --protocol=tcp --host=127.0.0.1 --port="$(port_of "$name")" --user=cap --password=cap "$@"
}

answers_mariadb() { mariadb_client mariadb --connect-timeout=3 -e 'SELECT 1' cap; }

client_mariadb() { mariadb_client mariadb cap "$@"; }

# --- The one beside it

user_mariadb_standby() { user_mariadb; }
ports_mariadb_standby() { ports_mariadb "$@"; }
prepare_mariadb_standby() { prepare_mariadb "$@"; }
start_mariadb_standby() { start_a_mariadb mariadb_standby "$@"; }
answers_mariadb_standby() { mariadb_client mariadb_standby --connect-timeout=3 -e 'SELECT 1' cap; }
client_mariadb_standby() { mariadb_client mariadb_standby cap "$@"; }

# --- RabbitMQ: the user guest/guest, a node of its own on the port above, an epmd of its own on the port above that, the
# management API on the port above that

user_rabbitmq() { echo; }
ports_rabbitmq() { echo "$1 $(($1 + 1)) $(($1 + 2)) $(($1 + 3))"; }

prepare_rabbitmq() {
  local home=$1 port=$2
  mkdir -p "$home/mnesia"
  echo '[rabbitmq_management].' >"$home/enabled_plugins"
  # The management API lists what there is; without statistics it costs nothing while a benchmark runs.
  cat >"$home/rabbitmq.conf" <<CONF
listeners.tcp.local = 127.0.0.1:$port
management.tcp.ip = 127.0.0.1
management.tcp.port = $((port + 3))
management.rates_mode = none
management_agent.disable_metrics_collector = true
vm_memory_high_watermark.relative = 0.6
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = info
log.file = false
CONF
}

rabbitmq_environment() {
  local home=$1 port=$2
  printf '%s\n' RABBITMQ_NODENAME=cap@localhost RABBITMQ_DIST_PORT=$((port + 1)) ERL_EPMD_PORT=$((port + 2)) \
    ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$home/enabled_plugins" RABBITMQ_MNESIA_BASE="$home/mnesia" \
    RABBITMQ_LOG_BASE="$home/log" RABBITMQ_LOGS=- \
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1}"
}

# RUNNING_UNDER_SYSTEMD makes the start script become the server instead of waiting for it.
start_rabbitmq() {
  local home=$1 port=$2 environment
  mapfile -t environment < <(rabbitmq_environment "$home" "$port")
  launch rabbitmq "$home" epmd -address 127.0.0.1 -port $((port + 2))
  launch rabbitmq "$home" "${environment[@]}" RUNNING_UNDER_SYSTEMD=true "$(rabbitmq_bin)/rabbitmq-server"
}

# Logs in, opens the virtual host and closes. All is sent at once; then the frames start, tune, open-ok, close-ok must come.
# The management API must listen, too.
answers_rabbitmq() (
  port_is_taken "$(management_port)" || exit 1
  header='AMQP\x00\x00\x09\x01'
  start_ok='\x01\x00\x00\x00\x00\x00\x24\x00\x0a\x00\x0b\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x0c\x00guest\x00guest\x05en_US\xce'
  tune_ok='\x01\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x1f\x07\xff\x00\x02\x00\x00\x00\x00\xce'
  open='\x01\x00\x00\x00\x00\x00\x08\x00\x0a\x00\x28\x01/\x00\x00\xce'
  close='\x01\x00\x00\x00\x00\x00\x0b\x00\x0a\x00\x32\x00\xc8\x00\x00\x00\x00\x00\xce'
  talk "$(port_of rabbitmq)" "$header$start_ok$tune_ok$open$close" || exit 1
  for expected in 000a000a 000a001e 000a0029 000a0033; do
    frame=$(receive 7)
    [ ${#frame} -eq 14 ] || exit 1
    method=$(receive $((16#${frame:6} + 1)))
    [ "${method:0:8}" = "$expected" ] || exit 1
  done
)

client_rabbitmq() {
  local home environment
  home=$(home_of rabbitmq)
  mapfile -t environment < <(rabbitmq_environment "$home" "$(port_of rabbitmq)")
  env HOME="$home" "${environment[@]}" "$(rabbitmq_bin)/rabbitmqctl" "${@:-status}"
}

# --- Kafka: one node, broker and controller. On the ports above: the controller, SASL (user cap), TLS with a certificate of
# its own, SASL once more for clients that come through a proxy, which the broker believes on the port above that, and above
# this one TLS for clients with a certificate

kafka_password=not-to-be-shown-7f3a
kafka_store_password=cap-backends

user_kafka() { echo; }
ports_kafka() { echo "$1 $(($1 + 1)) $(($1 + 2)) $(($1 + 3)) $(($1 + 4)) $(($1 + 6))"; }

prepare_kafka() {
  local home=$1 port=$2 jaas
  jaas="org.apache.kafka.common.security.plain.PlainLoginModule required user_cap=\"$kafka_password\";"
  prepare_kafka_certificate "$home"
  cat >"$home/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1)),\
  SASL://127.0.0.1:$((port + 2)),TLS://127.0.0.1:$((port + 3)),PROXIED://127.0.0.1:$((port + 4)),\
  MUTUAL://127.0.0.1:$((port + 6))
advertised.listeners=PLAINTEXT://127.0.0.1:$port,\
  SASL://127.0.0.1:$((port + 2)),TLS://127.0.0.1:$((port + 3)),PROXIED://127.0.0.1:$((port + 5)),\
  MUTUAL://127.0.0.1:$((port + 6))
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,\
  SASL:SASL_PLAINTEXT,TLS:SSL,PROXIED:SASL_PLAINTEXT,MUTUAL:SSL
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=$jaas
listener.name.proxied.plain.sasl.jaas.config=$jaas
ssl.keystore.location=$home/broker.p12
ssl.keystore.type=PKCS12
ssl.keystore.password=$kafka_store_password
listener.name.mutual.ssl.client.auth=required
listener.name.mutual.ssl.truststore.type=PEM
listener.name.mutual.ssl.truststore.location=$home/client.pem
log.dirs=$home/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
CONF
  cat >"$home/log4j2.properties" <<'CONF'
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c{1}: %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
CONF
  [ ! -e "$home/data/meta.properties" ] || return 0
  # A fixed id: "CAPforRustTests1".
  kafka_java -Xmx128m kafka.tools.StorageTool format --ignore-formatted \
    --cluster-id Q0FQZm9yUnVzdFRlc3RzMQ --config "$home/server.properties"
}

# Signed by themselves: the broker's is its own authority, in ca.pem, and so is the client's, with its key in client-key.pem.
prepare_kafka_certificate() {
  local home=$1
  if [ ! -e "$home/client.pem" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=cap-client \
      -keyout "$home/client-key.pem" -out "$home/client.pem.new" 2>/dev/null
    mv "$home/client.pem.new" "$home/client.pem"
  fi
  [ ! -e "$home/ca.pem" ] || return 0
  rm -f "$home/broker.p12"
  keytool -genkeypair -alias broker -keyalg EC -groupname secp256r1 -validity 3650 -storetype PKCS12 \
    -dname CN=cap-backends -ext san=ip:127.0.0.1,dns:localhost -keystore "$home/broker.p12" \
    -storepass "$kafka_store_password"
  keytool -exportcert -rfc -alias broker -keystore "$home/broker.p12" -storepass "$kafka_store_password" \
    >"$home/ca.pem.new"
  mv "$home/ca.pem.new" "$home/ca.pem"
}

kafka_java() {
  java -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.StatusLogger.level=OFF \
    -cp "$kafka_jars/*" "$@"
}

start_kafka() {
  local home=$1
  launch kafka "$home" java -Xms128m -Xmx512m -cp "$kafka_jars/*" \
    -Dlog4j2.configurationFile="file:$home/log4j2.properties" kafka.Kafka "$home/server.properties"
}

# A metadata request, version 4, for no topic: length, id, throttle time, then the number of brokers, which must be one.
answers_kafka() (
  metadata='\x00\x00\x00\x0f\x00\x03\x00\x04\x00\x00\x00\x01\xff\xff\x00\x00\x00\x00\x00'
  talk "$(port_of kafka)" "$metadata" || exit 1
  case $(receive 16) in
    ????????000000010000000000000001) ;;
    *) exit 1 ;;
  esac
)

client_kafka() {
  [ $# -gt 0 ] || { echo "which tool? such as: org.apache.kafka.tools.TopicCommand --list" >&2; return 2; }
  local tool=$1
  shift
  kafka_java "$tool" --bootstrap-server "$(own_url kafka)" "$@"
}

# --- MongoDB: secantusdb, a MongoDB-compatible server, which calls itself the replica set "secantus"

user_mongo() { echo; }
ports_mongo() { echo "$1"; }
prepare_mongo() { :; }

start_mongo() {
  local home=$1 port=$2
  launch mongo "$home" "$secantusdb_venv/bin/secantusd-py" --host 127.0.0.1 --port "$port" --storage-path "$home/data" \
    --sync-on-commit --cache-size 256M --enable-test-commands
}

answers_mongo() {
  timeout 10 "$secantusdb_venv/bin/python" -c '
import sys, pymongo
pymongo.MongoClient(sys.argv[1], serverSelectionTimeoutMS=3000, socketTimeoutMS=3000).admin.command("ping")
' "$1"
}

# The script to run, or a prompt, finds the database as `db`.
client_mongo() {
  if [ $# -eq 0 ]; then set -- -i; else set -- -c "$(client_mongo_prelude)"$'\n'"$*"; fi
  CAP_MONGO_URL=$(own_url mongo) PYTHONSTARTUP=<(client_mongo_prelude) "$secantusdb_venv/bin/python" "$@"
}

client_mongo_prelude() {
  echo 'import os, pymongo; client = pymongo.MongoClient(os.environ["CAP_MONGO_URL"]); db = client.cap'
}

# --- common

# What goes before a server's program if its clock can be set: right at each start, and read from a file at each look. Waiting
# goes by the monotonic clock, which stays as it is.
clock_environment() {
  local name=$1 file=$2/clock
  has_clock "$name" || return 0
  echo +0 >"$file"
  chmod a+r "$file"
  printf '%s\n' env LD_PRELOAD="$(faketime_library)" FAKETIME_TIMESTAMP_FILE="$file" FAKETIME_NO_CACHE=1 \
    FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1
}

# Connects and sends bytes, as printf understands them.
talk() { exec 3<>"/dev/tcp/127.0.0.1/$1" && printf '%b' "$2" >&3; }

# So many bytes of what comes back, in hexadecimal digits; fewer if they do not come soon.
receive() { { timeout 3 head -c "$1" <&3 || true; } | od -An -v -tx1 | tr -d ' \n'; }

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

stop_signal() { if [ "${1%_standby}" = postgres ]; then echo INT; else echo TERM; fi; }
