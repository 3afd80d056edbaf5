-- settle, version 1: corrects charges and renews or gives back permits. Same layout as admit.
--   gcra, cnt  c = units to add (negative gives back); a bucket that is gone stays gone
--   sem        c = id: give back;  renew  b = lease (us), c = id: hold it for so long from now, whatever the limit
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
for i, key in ipairs(KEYS) do
  local kind, a, b, c = ARGV[4*i-3], tonumber(ARGV[4*i-2]), tonumber(ARGV[4*i-1]), ARGV[4*i]
  if kind == 'gcra' then
    local level, since = string.match(redis.call('GET', key) or '0:0', '^([%d.]+):(%d+)$')
    level = math.max(0, tonumber(level) - math.max(0, now - tonumber(since)) * a / b) + tonumber(c)
    -- What was used beyond the limit is owed, but never more than one limit more.
    level = math.min(level, 2 * a)
    if level > 0 then
      redis.call('SET', key, string.format('%.6f:%.0f', level, now), 'PX', math.ceil(level * b / a / 1000) + 1)
    else
      redis.call('DEL', key)
    end
  elseif kind == 'cnt' then
    local window = math.floor(now / b)
    local found = redis.call('HMGET', key, 'w', 'n')
    if tonumber(found[1] or -1) == window then
      redis.call('HSET', key, 'n', string.format('%.0f', math.max(0, tonumber(found[2]) + tonumber(c))))
    end
  elseif kind == 'sem' then
    redis.call('ZREM', key, c)
  elseif kind == 'renew' then
    redis.call('ZADD', key, string.format('%.0f', now + b), c)
    redis.call('PEXPIRE', key, math.ceil(b / 1000) + 1)
  end
end
return 0
