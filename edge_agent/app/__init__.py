"""The composition root: settings become real objects. The only room that knows every other.

daemon    `edge-agent run`
packages  install, models, rollback, remove
ask       infer and bench, over MQTT
operate   doctor, service
wiring    settings to the options of each room
"""
