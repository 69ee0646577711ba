"""The composition root: settings become real objects. The only room that imports every other.

daemon          `edge-agent run`
packages        install, models, rollback, remove
ask             infer, chat, load and unload, over MQTT
bench           load test over MQTT
top             top and record
telemetry_plot  plot
operate         doctor, service
wiring          settings to the options of each room
"""
