"""The web app of the embedded host: `desk.py` does what its events ask for, `page.py` is its gradio page."""
