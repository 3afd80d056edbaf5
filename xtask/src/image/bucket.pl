# A bucket for the drill: put, get and list in S3's words, one client after the other. Whether a signature is right is S3's to check.
use strict;
use warnings;
use IO::Socket::INET;

my $server = IO::Socket::INET->new(LocalPort => 9000, Listen => 10, ReuseAddr => 1) or die "cannot listen: $!";
$SIG{PIPE} = 'IGNORE';
my %objects;
while (my $client = $server->accept) {
    my $head = '';
    while (my $line = <$client>) {
        last if $line =~ /^\r?\n$/;
        $head .= $line;
    }
    my ($method, $path) = $head =~ m{^(\S+) /backups/(\S*)} or next;
    print $client "HTTP/1.1 100 Continue\r\n\r\n" if $head =~ /^expect: *100-continue/im;
    my $body = '';
    read($client, $body, $1) if $head =~ /^content-length: *(\d+)/im;
    my ($status, $answer) = ('200 OK', '');
    if ($head !~ m{^authorization: *AWS4-HMAC-SHA256 Credential=drill/}im) {
        $status = '403 Forbidden';
    } elsif ($method eq 'PUT') {
        $objects{$path} = $body;
    } elsif ($path =~ /^\?list-type=2/) {
        $answer = '<ListBucketResult>' . join('', map { "<Contents><Key>$_</Key></Contents>" } sort keys %objects) . '</ListBucketResult>';
    } elsif (exists $objects{$path}) {
        $answer = $objects{$path};
    } else {
        $status = '404 Not Found';
    }
    print $client "HTTP/1.1 $status\r\ncontent-length: " . length($answer) . "\r\nconnection: close\r\n\r\n$answer";
    close $client;
}
