"""The files of ``torch.save``: zips, and those of before torch 1.6."""
