drop table webhook_delivery, webhook_endpoint, webhook_event;
