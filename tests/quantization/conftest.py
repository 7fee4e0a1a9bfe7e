from hypothesis import settings

# A deadline measures the machine, not the code.
settings.register_profile("quantization", deadline=None, max_examples=60)
settings.load_profile("quantization")
