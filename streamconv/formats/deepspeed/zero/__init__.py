"""Runs of DeepSpeed whose models have names of their own: ZeRO stages 0 to 3, pipelines, experts, universal folders."""
