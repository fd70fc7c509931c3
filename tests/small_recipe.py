"""A recipe for a two-layer ITT, ten batches on the CPU; `local` is to be replaced."""

RECIPE = """\
run_name: small
model:
  hidden_size: 32
  intermediate_size: 48
  num_hidden_layers: 2
  num_attention_heads: 2
  num_key_value_heads: 2
  vocab_size: 512
  max_position_embeddings: 32
thinking:
  thinking: itt
  thinking_steps: 3
  select_ratios: [0.5, 0.8]
data:
  local: shards
  seq_len: 32
  num_workers: 0
train:
  max_duration: 10ba
  global_batch_size: 4
  microbatch_size: 4
  precision: fp32
  device: cpu
  eval_interval: 5ba
  eval_batches: 2
  eval_batch_size: 4
  save_interval: 5ba
optimizer:
  decoupled_adamw:
    lr: 1.0e-3
scheduler:
  cosine_with_warmup: {}
"""
