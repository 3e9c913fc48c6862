import os

# Threads that wait for work give their core away soon. Without this, two trainings on one machine slow each other tenfold.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
