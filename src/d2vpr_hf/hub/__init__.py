"""Sharing: model cards, and pushing models, the metric and benchmarks to the Hugging Face Hub."""
