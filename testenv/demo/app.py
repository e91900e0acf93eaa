"""The demo's service: an ordinary Flask application that knows nothing of sca-probe."""

import sys

import requests
from flask import Flask, request

app = Flask(__name__)


@app.get("/upstream")
def upstream():
    return "hello\n"


@app.get("/fetch")
def fetch():
    response = requests.get(request.host_url + "upstream", timeout=10)
    return response.text


if __name__ == "__main__":
    app.run(host="127.0.0.1", port=int(sys.argv[1]))
