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

clients_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
