"""How the page looks, apart from `app.css`."""

from pathlib import Path

import gradio as gr

FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # of the visitor's machine: nothing is fetched

THEME = gr.themes.Soft(
    primary_hue="blue",
    secondary_hue="blue",
    neutral_hue="slate",
    font=FONTS,
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_600",  # the theme's own has a contrast of 2.5 : 1 with the page; this one 7 : 1
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_400",
    block_title_background_fill="none",
    block_title_padding="0",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_label_background_fill="*block_background_fill",
    block_label_background_fill_dark="*block_background_fill",
    block_label_text_color="*body_text_color_subdued",
    block_label_text_color_dark="*body_text_color_subdued",
    checkbox_label_background_fill_selected="*primary_50",
    checkbox_label_background_fill_selected_dark="*primary_900",
    checkbox_label_text_color_selected="*body_text_color",
    checkbox_border_color="*neutral_300",
)

HERE = Path(__file__).parent

LAUNCH = {
    "theme": THEME,
    "css_paths": HERE.parent / "app.css",
    "js": (HERE / "app.js").read_text(encoding="utf-8"),
    "footer_links": ["api"],
    "show_error": False,  # errors for people are shown all the same; whatever else goes wrong is nobody's business
    "ssr_mode": False,
    "max_file_size": "20mb",
    "max_threads": 80,  # comparisons that are admitted wait in a thread each
    "state_session_capacity": 200,  # visitors whose last comparison is kept, a few megabytes each
}
