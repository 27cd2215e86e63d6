#!/bin/sh
# keepalived as it is commonly used on EC2: VRRP by unicast, and a script that moves the route and the address.
# Started at boot without an argument; keepalived starts it with "master" on the instance that is to serve.
. /usr/local/sbin/rival.conf  # PRIMARY (yes on the primary), OWN_ID, OWN_ADDRESS, PEER_ADDRESS, TABLES, ALLOCATION_ID, AWS;
# and where they are not keepalived's own: ADVERT_INTERVAL (s), VRRP_VERSION

if [ "$1" = master ]; then
    for table in $TABLES; do
        $AWS ec2 replace-route --route-table-id "$table" --destination-cidr-block 0.0.0.0/0 --instance-id "$OWN_ID"
    done
    exec $AWS --cli-read-timeout 4 ec2 associate-address --allocation-id "$ALLOCATION_ID" --instance-id "$OWN_ID" \
        --allow-reassociation
fi

grep -q "$(hostname)" /etc/hosts || echo "$OWN_ADDRESS $(hostname)" >>/etc/hosts  # which keepalived looks up
cat >/run/keepalived.conf <<END
global_defs {
    script_user root
    enable_script_security
    vrrp_version ${VRRP_VERSION:-2}
}
vrrp_instance nat {
    state $([ "$PRIMARY" ] && echo MASTER || echo BACKUP)
    priority $([ "$PRIMARY" ] && echo 101 || echo 100)
    interface eth0
    virtual_router_id 51
    advert_int ${ADVERT_INTERVAL:-1}
    unicast_src_ip $OWN_ADDRESS
    unicast_peer {
        $PEER_ADDRESS
    }
    $([ "$VRRP_VERSION" = 3 ] && echo 'virtual_ipaddress { 169.254.200.1/32 dev lo }')  # it insists on one
    notify_master "/usr/local/sbin/keepalived.sh master"
}
END
exec /usr/sbin/keepalived --dont-fork --log-console --vrrp --use-file /run/keepalived.conf
