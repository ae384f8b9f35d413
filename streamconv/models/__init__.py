"""What a model is made of, whatever framework stores it: parameters, families, configurations."""
