"""A SuperNode of a site that means ill: it runs under the site's own key, and sends what no Flower reader expects."""

import time
from pathlib import Path

import httpx
from flwr.app import ConfigRecord
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from synthedge_client.flower_node import node_key
from synthedge_client.site import open_site


def _activate(client: FleetHttpClient, public_key: bytes) -> Node:
    wanted = ActivateNodeRequest(public_key=public_key, heartbeat_interval=60)
    while True:
        try:
            return Node(node_id=client.ActivateNode(wanted).node_id)
        except httpx.HTTPStatusError:  # the SuperLink has not missed the site's own yet
            time.sleep(1)


def reply_with_no_message(folder: Path, proxy: str) -> None:
    """Wait for one message, and reply with a record where a message belongs."""
    with open_site(folder) as site:
        key, trusted = node_key(site), site.keys.ca_file.read_bytes()
    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    public_key = public_key_to_bytes(key.public_key())
    with FleetHttpClient.from_server_address(
        proxy, False, trusted, interceptors=interceptors
    ) as client:
        node = _activate(client, public_key)
        while not (waiting := client.PullMessages(PullMessagesRequest(node=node)).messages_list):
            time.sleep(0.2)
        told = waiting[0].metadata
        content = ConfigRecord({"no": "message"}).deflate()
        reply = type(waiting[0])()
        reply.CopyFrom(waiting[0])
        reply.metadata.message_id = get_object_id(content)
        reply.metadata.src_node_id, reply.metadata.dst_node_id = node.node_id, told.src_node_id
        reply.metadata.reply_to_message_id = told.message_id
        reply.metadata.created_at, reply.metadata.ttl = time.time(), 5.0
        pushed = client.PushMessages(
            PushMessagesRequest(
                node=node,
                messages_list=[reply],
                message_object_trees=[ObjectTree(object_id=reply.metadata.message_id)],
                clientapp_runtime_list=[0.0],
            )
        )
        client.PushObject(
            PushObjectRequest(
                node=node,
                run_id=told.run_id,
                object_id=reply.metadata.message_id,
                object_content=content,
                session_id=pushed.session_id,
            )
        )
