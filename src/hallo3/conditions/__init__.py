"""What a person has (portrait, speech, text) → the tensors that the networks take."""
