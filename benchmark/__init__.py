"""SpiderBench: fine-tune multimodal LLMs without forgetting, one command per table."""
