"""Commented starter specs: `llmsched init KIND`. Each loads as it stands (of a kind that works)."""

from __future__ import annotations

TRAIN = """\
# Fine-tunes a model on your data. Check it: llmsched plan -f FILE     Run it: llmsched apply -f FILE
name: my-fine-tune               # lower-case letters, digits and "-"
kind: train
priority: 50                     # 0..100, higher wins
resources:                       # what ONE worker gets
  accelerators: [A100:1, L4:1]   # in order of preference; leave it out for CPU only; L4:0.5 is half a GPU
  cpus: 2
  memory: 8GB
workers: 1..4                    # any count in the range gives the same mathematics; also just 2
max_runtime: 6h                  # stopped after that
checkpoint: {every: 10m, keep: 3}
# secrets: [HF_TOKEN]            # in every worker's environment; kept with llmsched secret set HF_TOKEN
workdir: .                       # this folder is packed and shipped to the workers; paths below are inside it
train:
  base_model: hf://Qwen/Qwen2.5-0.5B-Instruct   # or s3://, run://, model://NAME@2, package:NAME/PATH, a path
  task: causal-lm                # or sequence-classification, seq2seq-lm ...
  method: lora                   # or full
  lora: {r: 16, lora_alpha: 32, lora_dropout: 0.05, target_modules: all-linear}
  datasets:
    - {path: data/train.jsonl, split: train}    # chats of any tool are recognised; or say which: format: alpaca
    - {path: data/test.jsonl, split: test}
  global_batch_size: 16          # over all workers, constant over resizes
  training_args: {learning_rate: 2.0e-4, num_train_epochs: 2}
  evaluation: {on: test, metrics: [loss]}
# On success, live in a running endpoint, if it is good enough; with method: full write as: model.
# publish: {to: my-endpoint, as: adapter, when: "eval.loss < 1.2"}
"""

SERVE = """\
# Serves a model behind an OpenAI-style endpoint. Check it: llmsched plan -f FILE     Run it: llmsched apply -f FILE
name: my-endpoint
kind: serve
priority: 80                     # 0..100, higher wins
resources: {accelerators: [L4:1, A100:1], cpus: 2, memory: 8GB}    # what ONE replica gets
replicas: 1..2                   # 0..2 lets it go down to nothing when nobody asks
autoscaling: {target_ongoing_requests: 8, upscale_delay_s: 15, downscale_delay_s: 300}
# slo: {ttft_p95: 500ms, tpot_p95: 50ms}    # as many replicas as that takes, once it was measured; or latency_p95: 2s
max_ongoing_requests: 32         # per replica; what comes above it is answered 429
request_timeout: 10m             # a request that takes longer altogether is answered 504
hold_timeout: 2m                 # while no replica answers, requests wait for one for so long
serve:
  # Also run://my-fine-tune, which waits for that run, or model://my-fine-tune@2, which is there (llmsched models).
  model: {id: my-model, source: hf://Qwen/Qwen2.5-0.5B-Instruct}
  task: causal-lm                # or sequence-classification, seq2seq-lm ...
  # adapters: [{name: sql, source: run://sql-lora}]
drain_timeout: 5m                # how long running requests may take to finish
rollout: {max_surge: 1}          # a new replica comes before an old one leaves; 0: after, which needs no room
replica_placement: spread        # on different nodes where there is room; pack: as the cluster's policy has it
# Code of your own instead of a model:
# serve: {app: "mypkg.app:app"}   # what `serve run` takes, or a class that takes JSON
#   and deployments: {Large: {accelerators: L4:1, replicas: 2}}   in it, for those that may be on other nodes
"""

TASK = """\
# Runs a command on every worker. Check it: llmsched plan -f FILE     Run it: llmsched apply -f FILE
name: my-task
kind: task
resources: {cpus: 1, memory: 1GB}
workers: 1
max_runtime: 1h
# schedule: {cron: "0 2 * * *"}   # every night at two (UTC), as my-task, my-task@2 ...
workdir: .                       # this folder is packed and shipped to the workers
envs: {MODE: fast}
# environment: {pip: ["einops>=0.8", wheels/mine-1.0-py3-none-any.whl]}   # besides the cluster's own packages
# secrets: [API_KEY]             # kept with llmsched secret set API_KEY
task:
  run: ["python", "script.py"]   # a list of words; for a shell write ["bash", "-c", "..."]
  # Asked to leave (preempted, resized, cancelled) it gets SIGTERM and may save; it runs again, whatever its exit code,
  # unless every worker has made the file that $LLMSCHED_DONE names: then it is done. 126 and 127 are never tried again.
  # setup: ["pip", "install", "-r", "requirements.txt"]
  # Several workers: run: [torchrun, train.py] needs no flag; MASTER_ADDR, MASTER_PORT, RANK and the rest are set.
  # processes_per_worker: 2        # as many processes on each worker, each with a RANK; gpus: one for each GPU
"""

RAY = """\
# Runs a Ray program, as it is, in a Ray of its own. Check it: llmsched plan -f FILE     Run it: llmsched apply -f FILE
name: my-ray-program
kind: ray
resources: {accelerators: A100:1, cpus: 4, memory: 16GB}    # what ONE node of its Ray gets: whole CPUs and GPUs
workers: 2..8                    # nodes; more join and some leave while it runs (drained first); also just 2
max_runtime: 6h
workdir: .                       # at the same path on every machine, and where Ray's workers stand
# environment: {pip: [verl]}     # besides the cluster's own packages
ray:
  run: ["python", "program.py"]  # runs once, on the first node, with RAY_ADDRESS set: ray.init() is enough
  # setup: ["python", "prepare.py"]    # before, once on every machine
  # object_store_memory: 4GB     # of each node's memory; without it 30 %
"""

BATCH = """\
# Puts every row of a data set through a model. Check it: llmsched plan -f FILE     Run it: llmsched apply -f FILE
name: my-batch
kind: batch
resources: {accelerators: L4:1, cpus: 2, memory: 8GB}    # what ONE worker gets
workers: 1..4                    # each loads the model; they come and go while it runs, and no row is lost or doubled
batch:
  input:                         # a file, folder or pattern, as for train: JSON Lines, CSV, Parquet, text, also .gz
    path: s3://my-bucket/texts.parquet
    columns: {text: body}        # which field the model reads, where it is not named so
    on_bad_row: skip             # set aside and named in _bad_rows.jsonl; or refuse
  model: run://my-fine-tune      # or a function of your own, in the workdir: map: "mypkg.clean:rows"
  task: sequence-classification  # or feature-extraction: vectors; or causal-lm: answers, with args: {max_tokens: 64}
  output: s3://my-bucket/scored  # a folder of its own for each run; without it the rows are the result
  # format: jsonl                # instead of parquet
  batch_size: 64                 # rows that a worker takes at once
# With follow (10s, say), an absolute path and an output it never ends: it answers the files and lines that are added.
"""

TUNE = """\
# Tries training arguments; every trial takes `resources` for each of its workers. llmsched best my-search shows them,
# and run://my-search/best is the best one's result.
name: my-search
kind: tune
resources: {accelerators: A100:1, cpus: 2, memory: 8GB}
workers: 1
tune:
  train:
    base_model: hf://Qwen/Qwen2.5-0.5B-Instruct
    method: lora
    datasets:
      - {path: data/train.jsonl, format: chat}
      - {path: data/test.jsonl, split: test, format: chat}
    evaluation: {on: test, metrics: [loss], every: 50}
    training_args: {max_steps: 500}
  space: {learning_rate: {loguniform: [1.0e-5, 1.0e-3]}, lora.r: {choice: [8, 16]}}
  samples: 16
  concurrent: 4
  metric: eval.loss
  mode: min
  scheduler: asha                # stops poor trials early
"""

STARTERS = {"train": TRAIN, "serve": SERVE, "batch": BATCH, "tune": TUNE, "task": TASK, "ray": RAY}


def starter(kind: str) -> str:
    """The starter spec of a kind. KeyError for another word."""
    return STARTERS[kind]
