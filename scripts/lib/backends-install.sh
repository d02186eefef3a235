# shellcheck shell=bash
# Installs what is missing: Debian packages, Kafka's jars by Maven, the MongoDB-compatible server by pip.

kafka_version=4.1.1
secantusdb_version=0.7.0b3
kafka_jars=$dir/software/kafka-$kafka_version
secantusdb_venv=$dir/software/secantusdb-$secantusdb_version

# Debian keeps the servers' programs outside the path.
postgres_bin() {
  local found
  for found in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort --version-sort --reverse) "$(dirname "$(command -v initdb || true)")"; do
    if [ -x "$found/initdb" ] && [ -x "$found/postgres" ]; then
      printf '%s' "$found"
      return
    fi
  done
}

# The scripts themselves, not the wrappers in the path that change the user.
rabbitmq_bin() {
  local found
  for found in /usr/lib/rabbitmq/bin "$(dirname "$(command -v rabbitmq-server || true)")"; do
    if [ -x "$found/rabbitmq-server" ]; then
      printf '%s' "$found"
      return
    fi
  done
}

pgbouncer_program() { PATH=$PATH:/usr/sbin:/usr/local/sbin command -v pgbouncer || true; }

mariadb_program() { PATH=$PATH:/usr/sbin:/usr/local/sbin command -v mariadbd || true; }

faketime_library() {
  local found
  for found in /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib/faketime/libfaketimeMT.so.1; do
    if [ -e "$found" ]; then
      printf '%s' "$found"
      return
    fi
  done
}

# The Debian packages that a server needs and that are not there.
missing_packages() {
  ! has_clock "$1" || [ -n "$(faketime_library)" ] || echo libfaketime
  case $1 in
    postgres | postgres_standby) [ -n "$(postgres_bin)" ] || echo postgresql ;;
    pgbouncer)
      [ -n "$(postgres_bin)" ] || echo postgresql
      [ -n "$(pgbouncer_program)" ] || echo pgbouncer
      ;;
    mariadb | mariadb_standby) [ -n "$(mariadb_program)" ] || echo mariadb-server ;;
    rabbitmq) [ -n "$(rabbitmq_bin)" ] || echo rabbitmq-server ;;
    kafka)
      command -v java >/dev/null || echo default-jre-headless
      command -v openssl >/dev/null || echo openssl
      [ -e "$kafka_jars/installed" ] || command -v mvn >/dev/null || echo maven
      ;;
    mongo) [ -e "$secantusdb_venv/installed" ] || python3 -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv ;;
  esac
}

# Output goes to a log; the end of it is shown if the command fails.
quietly() {
  local log=$dir/logs/install.log
  if ! "$@" >>"$log" 2>&1 </dev/null; then
    echo "failed: $*; the end of $log:" >&2
    tail -n 20 "$log" >&2
    return 1
  fi
}

# The packages must not start the system's own servers.
install_packages() {
  local sudo=() policy=/usr/sbin/policy-rc.d
  command -v apt-get >/dev/null || { echo "please install: $*" >&2; return 1; }
  as_root || sudo=(sudo)
  echo "installing packages: $*"
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod +x "$policy"
    # shellcheck disable=SC2064 # as they are now
    trap "${sudo[*]} rm -f $policy" EXIT
  fi
  quietly "${sudo[@]}" apt-get update -qq
  quietly "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=600 "$@"
}

# The server, its command-line tools and a logger, without Kafka Connect.
install_kafka() {
  [ ! -e "$kafka_jars/installed" ] || return 0
  echo "installing Kafka $kafka_version"
  rm -rf "$kafka_jars"
  mkdir -p "$kafka_jars"
  cat >"$kafka_jars/pom.xml" <<XML
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>cap</groupId>
  <artifactId>backends-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>$kafka_version</version>
    </dependency>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka-tools</artifactId>
      <version>$kafka_version</version>
      <exclusions>
        <exclusion><groupId>org.apache.kafka</groupId><artifactId>connect-runtime</artifactId></exclusion>
      </exclusions>
    </dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId>
      <artifactId>log4j-slf4j-impl</artifactId>
      <version>2.24.3</version>
    </dependency>
  </dependencies>
</project>
XML
  quietly mvn -B -ntp -f "$kafka_jars/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$kafka_jars"
  touch "$kafka_jars/installed"
}

install_secantusdb() {
  [ ! -e "$secantusdb_venv/installed" ] || return 0
  echo "installing secantusdb $secantusdb_version"
  rm -rf "$secantusdb_venv"
  quietly python3 -m venv "$secantusdb_venv"
  quietly "$secantusdb_venv/bin/pip" install --quiet "secantusdb==$secantusdb_version"
  touch "$secantusdb_venv/installed"
}

# In a process of its own: the lock and the guard against started services end with it.
install_missing() (
  take_lock install
  packages=()
  for name; do
    mapfile -t -O "${#packages[@]}" packages < <(missing_packages "$name")
  done
  [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
  for name; do
    case $name in
      kafka) install_kafka ;;
      mongo) install_secantusdb ;;
    esac
  done
)
