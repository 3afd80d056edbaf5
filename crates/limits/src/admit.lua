-- admit, version 1. All or nothing: first every operation is looked at, then, if none refuses, all are written.
--
-- KEYS[i] and ARGV[4i-3 .. 4i] are operation i: kind, a, b, c.
--   rev   a = issued at (Unix s)                   refuse when the mark's time >= a
--   rec   a = etag known to the caller             refuse when the record is missing or has another etag
--   gcra  a = limit, b = period (us), c = cost     value: "level:time", units in the bucket at a time (us). The bucket
--                                                  drains at limit/period: GCRA in its leaky-bucket form (ITU-T I.371)
--   win   a = limit, b = period (us), c = cost     sorted set: one member per admitted unit, scored by its time
--   cnt   a = limit, b = period (us), c = cost     hash: w = window number, n = units
--   sem   a = limit, b = lease (us),  c = id       sorted set: permits, scored by their end
-- Answer: {status, i, x, remaining_1, reset_1, remaining_2, reset_2, ...}, times in us, one pair per gcra, win and cnt.
--   status 0 admitted; 1 limited by operation i, again after x (-1: never); 2 revoked; 3 record missing;
--   4 record changed, x is the record.
--
-- Only Redis's clock counts. It may step back: a bucket then drains from the new time on, and units of a window that lie
-- ahead count as of now, so that nobody is locked out for longer than a period.
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local plans, out = {}, {0, 0, 0}

for i, key in ipairs(KEYS) do
  local kind, a, b, c = ARGV[4*i-3], ARGV[4*i-2], tonumber(ARGV[4*i-1]), ARGV[4*i]
  if kind == 'rev' then
    local mark = redis.call('GET', key)
    if mark and tonumber(mark) >= tonumber(a) then return {2, i, 0} end
  elseif kind == 'rec' then
    local record = redis.call('GET', key)
    if not record then return {3, i, 0} end
    if string.sub(record, 1, #a + 1) ~= a .. '|' then return {4, i, record} end
  elseif kind == 'gcra' then
    local limit, cost = tonumber(a), tonumber(c)
    if cost > limit then return {1, i, -1} end
    local level, since = string.match(redis.call('GET', key) or '0:0', '^([%d.]+):(%d+)$')
    level = math.max(0, tonumber(level) - math.max(0, now - tonumber(since)) * limit / b) + cost
    -- Fractions of a unit are kept; the tolerance is for their rounding only.
    if level > limit + 0.001 then return {1, i, math.ceil((level - limit) * b / limit)} end
    local reset = math.ceil(level * b / limit)
    out[#out+1] = math.max(0, math.floor(limit - level + 0.001))
    out[#out+1] = reset
    if cost > 0 then
      plans[#plans+1] = function()
        redis.call('SET', key, string.format('%.6f:%.0f', level, now), 'PX', math.ceil(reset / 1000) + 1)
      end
    end
  elseif kind == 'win' then
    local limit, cost = tonumber(a), tonumber(c)
    if cost > limit then return {1, i, -1} end
    redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now - b))
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, string.format('(%.0f', now), '+inf')) do
      redis.call('ZADD', key, string.format('%.0f', now), member)
    end
    local count = redis.call('ZCARD', key)
    if count + cost > limit then
      -- Room comes when the oldest units that stand in the way have left.
      local last = redis.call('ZRANGE', key, count + cost - limit - 1, count + cost - limit - 1, 'WITHSCORES')
      return {1, i, tonumber(last[2]) + b - now}
    end
    local oldest = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    out[#out+1] = limit - count - cost
    out[#out+1] = (oldest[2] and tonumber(oldest[2]) or now) + b - now
    plans[#plans+1] = function()
      local seq = redis.call('ZREVRANGE', key, 0, 0)[1]
      seq = seq and tonumber(string.match(seq, '%d+$')) or 0
      for n = 1, cost do
        redis.call('ZADD', key, string.format('%.0f', now), string.format('%.0f-%.0f', now, (seq + n) % 1000000007))
      end
      if cost > 0 then redis.call('PEXPIRE', key, math.ceil(b / 1000) + 1) end
    end
  elseif kind == 'cnt' then
    local limit, cost = tonumber(a), tonumber(c)
    if cost > limit then return {1, i, -1} end
    local window = math.floor(now / b)
    local found = redis.call('HMGET', key, 'w', 'n')
    local n = 0
    if tonumber(found[1] or -1) == window then n = tonumber(found[2]) end
    local left = (window + 1) * b - now
    if n + cost > limit then return {1, i, left} end
    out[#out+1] = limit - n - cost
    out[#out+1] = left
    if cost > 0 then
      plans[#plans+1] = function()
        redis.call('HSET', key, 'w', string.format('%.0f', window), 'n', string.format('%.0f', n + cost))
        redis.call('PEXPIRE', key, math.ceil(left / 1000) + 1)
      end
    end
  elseif kind == 'sem' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
    if redis.call('ZCARD', key) >= tonumber(a) and not redis.call('ZSCORE', key, c) then return {1, i, 1000000} end
    plans[#plans+1] = function()
      redis.call('ZADD', key, string.format('%.0f', now + b), c)
      redis.call('PEXPIRE', key, math.ceil(b / 1000) + 1)
    end
  else
    return redis.error_reply('admit v1: unknown operation ' .. kind)
  end
end
for _, plan in ipairs(plans) do plan() end
return out
