"""Sharing: model cards, and pushing models, the metric and exported protocols to the Hugging Face Hub."""
