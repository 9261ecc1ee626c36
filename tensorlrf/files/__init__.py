"""The files of this library: safetensors with a sealed header, replaced whole or not at all."""
