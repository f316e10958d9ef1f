"""The parts of the browser demo: `app.py` puts them together. What they compute is in modules that know no Gradio."""
