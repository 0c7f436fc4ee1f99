"""What is made of a model's outputs: boxes, masks, points, classes, vectors; and who finds which by its name."""
