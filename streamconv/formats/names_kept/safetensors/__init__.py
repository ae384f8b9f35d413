"""safetensors files, names kept."""
