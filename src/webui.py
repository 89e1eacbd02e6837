from llamafactory.webui.interface import run_webui


if __name__ == "__main__":
    run_webui()
