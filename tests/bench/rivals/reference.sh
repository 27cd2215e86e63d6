#!/bin/sh
# What Amazon's nat_monitor.sh of 2013 does, told in our own words on the AWS CLI, and the egress address added to it.
. /usr/local/sbin/rival.conf  # PRIMARY (yes on the primary), OWN_ID, PEER_ID, TABLES, ALLOCATION_ID, AWS; exports AWS_*

NUM_PINGS=3 PING_TIMEOUT=1 WAIT_BETWEEN_PINGS=2 WAIT_FOR_INSTANCE_STOP=60 WAIT_FOR_INSTANCE_START=300

say() { echo "$(date -u +%FT%TZ) $*"; }

# One table after the other, then the address. Its answer may be lost with the address, so that one is not awaited long.
claim() {
    for table in $TABLES; do
        $AWS ec2 replace-route --route-table-id "$table" --destination-cidr-block 0.0.0.0/0 --instance-id "$OWN_ID" ||
            $AWS ec2 create-route --route-table-id "$table" --destination-cidr-block 0.0.0.0/0 --instance-id "$OWN_ID"
    done
    $AWS --cli-read-timeout 4 ec2 associate-address --allocation-id "$ALLOCATION_ID" --instance-id "$OWN_ID" \
        --allow-reassociation
}

describe_peer() { $AWS ec2 describe-instances --instance-ids "$PEER_ID" --output text --query "Reservations[].Instances[].$1"; }

# Stop the peer, whatever it does, until it is seen to be stopped; then start it.
restart_peer() {
    asked_to_stop=
    until [ "$(describe_peer State.Name)" = stopped ]; do
        [ "$asked_to_stop" ] || $AWS ec2 stop-instances --instance-ids "$PEER_ID"
        asked_to_stop=yes
        sleep $WAIT_FOR_INSTANCE_STOP
    done
    $AWS ec2 start-instances --instance-ids "$PEER_ID"
    sleep $WAIT_FOR_INSTANCE_START
}

address=$(describe_peer PrivateIpAddress)
[ "$PRIMARY" ] && claim
say "$PEER_ID: watching it"
while :; do
    if ping -c $NUM_PINGS -W $PING_TIMEOUT "$address" | grep -q time=; then
        sleep $WAIT_BETWEEN_PINGS
    else
        say "$PEER_ID: no answer, taking over"
        claim
        restart_peer
        say "$PEER_ID: watching it"
    fi
done
