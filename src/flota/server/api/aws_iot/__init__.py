"""AWS IoT over MQTT and HTTP: Jobs, file streams, the OTA job document. `build_aws_iot` makes it all.

Source: docs/reference/aws-iot.md.
"""

from flota.server.api.aws_iot.dialect import AwsIot
from flota.server.api.aws_iot.files import AwsIotFiles

build_aws_iot = AwsIot

__all__ = ["AwsIot", "AwsIotFiles", "build_aws_iot"]
