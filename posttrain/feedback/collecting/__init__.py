"""New preference pairs from answers of trained models: sampled, judged and paired, with the origin of every row."""
