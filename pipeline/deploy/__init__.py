"""What runs beside a user's service: it answers from a bundle and needs numpy, Pillow and onnxruntime only.

This file imports nothing.
"""
