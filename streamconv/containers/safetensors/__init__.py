"""The files of safetensors."""
