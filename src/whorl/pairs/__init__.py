"""Methods that need the weights of both models at once: operators in a common frame, neuron matching, aligned Grams."""
