"""Adapters of PEFT: by themselves, inside a run, and added to the model that they were trained on."""
