# Functions that install the tools of the clients' commands, which source this file: pinned versions,
# in ignored folders of this checkout, and only if the versions have changed.

# python_env DIR REQUIREMENTS: a virtual environment in DIR/.venv with the packages of the requirements
# file, and of those that it includes.
python_env() {
  local dir=$1 requirements=$2 venv=$1/.venv wanted
  # With the path, since a virtual environment cannot be moved.
  wanted=$({ echo "$venv"; python3 --version; cat "$requirements" "$clients_dir"/python/requirements*.txt; } | cksum)
  if [[ -f $venv/installed && $(<"$venv/installed") == "$wanted" ]]; then
    return
  fi
  echo "installing $requirements into $venv" >&2
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" >&2
  echo "$wanted" >"$venv/installed"
}

# node_env: clients/typescript/node_modules with the packages of package-lock.json.
node_env() {
  local dir=$clients_dir/typescript wanted
  wanted=$({ node --version; cat "$dir/package-lock.json" "$dir/.npmrc"; } | cksum)
  if [[ -f $dir/node_modules/installed && $(<"$dir/node_modules/installed") == "$wanted" ]]; then
    return
  fi
  echo "installing $dir/package-lock.json" >&2
  (cd "$dir" && npm ci --loglevel=error >&2)
  echo "$wanted" >"$dir/node_modules/installed"
}

# go_tools: the generators and the linter of the Go client in $go_bin. The generators are the oldest that go with the
# oldest supported runtime, of clients/go/go.mod.
go_tools() {
  local wanted tools=(
    google.golang.org/protobuf/cmd/protoc-gen-go@v1.34.1
    google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
    honnef.co/go/tools/cmd/staticcheck@v0.7.0
  )
  if ! command -v go >/dev/null; then
    echo "there is no go: install Go 1.26 or newer from https://go.dev/dl/ or, on Debian, by apt-get install golang" >&2
    return 1
  fi
  # staticcheck reads only code for a Go that is not newer than the one it was built with.
  wanted=$({ go env GOVERSION; echo "${tools[@]}"; } | cksum)
  if [[ -f $go_bin/installed && $(<"$go_bin/installed") == "$wanted" ]]; then
    return
  fi
  echo "installing ${tools[*]} into $go_bin" >&2
  mkdir -p "$go_bin"
  local tool
  for tool in "${tools[@]}"; do
    GOBIN=$go_bin GOFLAGS= go install "$tool" >&2
  done
  echo "$wanted" >"$go_bin/installed"
}

# maven_env: fails unless there are a JDK and Maven.
maven_env() {
  local missing=()
  type -P javac >/dev/null || missing+=("a JDK 17 or newer (Debian: apt-get install openjdk-17-jdk-headless)")
  type -P mvn >/dev/null || missing+=("Maven 3.8 or newer (Debian: apt-get install maven)")
  if ((${#missing[@]})); then
    printf 'the Java client needs %s\n' "${missing[@]}" >&2
    return 1
  fi
}

clients_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
go_bin=$(dirname "$clients_dir")/target/go/bin
