"""GPT-NeoX's folders."""
