# Installs what the clients' commands need; sourced by them. Everything goes into
# ignored folders of this checkout, with pinned versions, and only when it changed.

# python_env DIR REQUIREMENTS: a virtual environment in DIR/.venv with what the
# requirements file (and those that it names) pin.
python_env() {
  local dir=$1 requirements=$2 venv=$1/.venv wanted
  # The path is part of it: a virtual environment does not survive being moved.
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

# node_env: clients/typescript/node_modules as package-lock.json says.
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

clients_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
