"""A Flask service that calls requests, without a network, and says what the engine has done in its worker."""

import os

import requests
from flask import Flask, jsonify

app = Flask(__name__)


class Nowhere(requests.adapters.BaseAdapter):
    def send(self, request, **kwargs):
        response = requests.Response()
        response.status_code = 200
        response.request = request
        response.url = request.url
        response._content = b""
        return response

    def close(self):
        pass


session = requests.Session()
session.mount("nowhere://", Nowhere())


@app.route("/call")
def call():
    session.get("nowhere://host/")  # LINE
    return str(os.getpid())


@app.route("/state")
def state():
    import sca_probe

    return jsonify(pid=os.getpid(), targets=sca_probe.targets(), states=sca_probe.states())
