"""What runs beside a user's service: answers from a bundle, with numpy, Pillow and onnxruntime alone. Nothing is imported here."""
