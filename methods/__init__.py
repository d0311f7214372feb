"""Fine-tuning methods: one file each, configured through methods.registry."""
