"""The backend of the service that is its own."""

import cv2

import fastpipe


class Encode(fastpipe.PerRequest):
    """Makes a JPEG of an image: uint8, height x width x 3, BGR."""

    def run(self, request: fastpipe.Request) -> None:
        _, jpeg = cv2.imencode(".jpg", request["data"])
        request["result"] = jpeg.tobytes()
