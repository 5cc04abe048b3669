"""D²-VPR visual place recognition for the Hugging Face world."""

__version__ = "0.1.0"
