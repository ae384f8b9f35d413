"""The files of ``torch.distributed.checkpoint``: ``.distcp`` and ``.metadata``."""
