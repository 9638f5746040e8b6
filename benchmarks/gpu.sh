#!/usr/bin/env bash
# Everything that one CUDA card has to show, in at most eight minutes, with raw results in a folder:
#
#     bash benchmarks/gpu.sh RESULTS [DATA_ROOT]
#
# It runs from the root of a checkout in which `pip install -e '.[examples,test]'` was done. Each part has a limit of its
# own; one that fails or runs out of it is named at the end, and the others go on.
#
#   tests       the tests that need a CUDA device
#   steps       10, 100 and 1,000 leaves, batches of 100 and 4,096, fp32, TF32 and bf16: dense, 1 and 2 leaves a sample,
#               compiled, against the loop over experts and vmap
#   routed      10,000 leaves of 64 units, batch 1,024, one leaf a sample
#   infer       routing and sampling
#   mnist       examples/mnist_flat.py as it comes, where DATA_ROOT has MNIST
set -uo pipefail
cd "$(dirname "$0")/.."

results=${1:?expected a folder for results, as in: bash benchmarks/gpu.sh runs/gpu}
data=${2:-${HMOEVAE_DATA:-}}
device=${HMOEVAE_GPU_DEVICE:-cuda} # "cpu" tries the script where there is no card
mkdir -p "$results"
failed=()

part() { # name, seconds, command...
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  local start=$SECONDS
  timeout --kill-after 10 "$limit" "$@" >"$results/$name.log" 2>&1 || failed+=("$name (status $?)")
  echo "   $((SECONDS - start)) s"
}

if command -v nvidia-smi >/dev/null; then nvidia-smi >"$results/nvidia-smi.txt"; fi
python -c "import sys, torch; print(torch.__version__); sys.exit(sys.argv[1] == 'cuda' and not torch.cuda.is_available())" \
  "$device" >"$results/torch.txt" || { echo "gpu.sh: expected a CUDA device, got none"; exit 1; }

throughput=(python benchmarks/throughput.py --device "$device" --rounds 5 --cell-seconds 6)
part tests 60 python -m pytest -q -n 0 -m "" -k "cuda or accelerator" tests/training/test_training.py tests/estimator
part steps_100 110 "${throughput[@]}" --leaves 10 100 1000 --batch 100 --precision fp32 tf32 bf16 --route 1 2 \
  --against loop vmap compile --json "$results/steps_100.json"
part steps_4096 80 "${throughput[@]}" --leaves 10 100 --batch 4096 --precision fp32 tf32 bf16 --route 1 2 \
  --against loop --json "$results/steps_4096.json"
part routed 50 "${throughput[@]}" --leaves 10000 --hidden 64 --batch 1024 --precision fp32 --route 1 --against \
  --json "$results/routed.json"
part infer 30 "${throughput[@]}" --op route sample --leaves 10 100 --batch 100 4096 --precision fp32 bf16 --against loop \
  --json "$results/infer.json"
if [ -n "$data" ]; then
  part mnist 140 python examples/mnist_flat.py --device "$device" --data-root "$data" --out "$results/mnist_flat"
else
  failed+=("mnist (no DATA_ROOT)")
fi

if [ ${#failed[@]} -gt 0 ]; then
  printf 'did not come to their end: %s\n' "${failed[*]}"
  exit 1
fi
