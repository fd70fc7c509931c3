"""Checkpoints of training: their names and places, reading, damage, and their two forms.

A monolithic checkpoint is one file of `torch.save`, a sharded one a folder, as FSDP2 writes it
through `torch.distributed.checkpoint`.
"""
